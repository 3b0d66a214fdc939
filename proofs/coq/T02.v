(* T02. Below 1/L every step decreases f, and the steps die out. Any set S, any C; the nearest point need only exist. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Descent.
Variables (R : realFieldType) (m n : nat) (W : 'M[R]_(m, n)) (C : 'M[R]_n).
Variables (S : 'M[R]_(m, n) -> Prop) (eta : R).
Hypotheses (symC : symmetric C) (eta_gt0 : 0 < eta).

Local Notation f := (objective W C).
(* One step of the iteration: T' is a nearest point of S to T - eta grad f(T), any one of them. *)
Definition pgd_step T T' := nearest S (T - eta *: gradient W C T) T'.

(* The first step of the proof: <G, D> <= -||D||^2 / (2 eta), because T itself is a candidate. *)
Lemma gradient_move T T' : S T -> pgd_step T T' ->
  dot (gradient W C T) (T' - T) <= - (sqnorm (T' - T) / (2%:R * eta)).
Proof.
move=> ST [_ /(_ _ ST)].
set G := gradient W C T; set D := T' - T.
have -> : T - eta *: G - T' = - (eta *: G + D) by apply/matrixP => i j; rewrite !mxE; ring.
have -> : T - eta *: G - T = - (eta *: G) by rewrite addrAC subrr add0r.
rewrite !sqnormN sqnormD dotZl -addrA ger_addl => le0.
rewrite -(@ler_pmul2l _ (2%:R * eta)) ?mulr_gt0 ?ltr0n // mulrN mulrCA mulfV ?mulr1.
  by rewrite -subr_le0 opprK -mulrA.
by rewrite mulf_neq0 ?pnatr_eq0 ?gt_eqF.
Qed.

(* (a) for every eta *)
Theorem exact_decrease T T' : S T -> pgd_step T T' ->
  f T' <= f T - (sqnorm (T' - T) / eta - form C (T' - T)) / 2%:R.
Proof.
move=> ST step; have := gradient_move ST step.
have -> : f T' = f (T + (T' - T)) by rewrite addrC subrK.
rewrite objectiveD //; move: (dot _ _) (sqnorm _) (form _ _) (f T) => x s q y le.
rewrite -addrA ler_add2l -subr_ge0.
suff -> : - ((s / eta - q) / 2%:R) - (x + q / 2%:R) = - (s / (2%:R * eta)) - x by rewrite subr_ge0.
by field; rewrite gt_eqF.
Qed.

Section WithBound.
Variable L : R.

(* (b), (d): L need only bound the rows of the move that occurs. *)
Lemma decrease_on_move T T' : S T -> pgd_step T T' ->
  (forall i, form C (row i (T' - T)) <= L * sqnorm (row i (T' - T))) ->
  f T' <= f T - (eta^-1 - L) / 2%:R * sqnorm (T' - T).
Proof.
move=> ST step /form_le le; apply: (le_trans (exact_decrease ST step)).
rewrite ler_add2l ler_opp2 -subr_ge0.
have -> : (sqnorm (T' - T) / eta - form C (T' - T)) / 2%:R - (eta^-1 - L) / 2%:R * sqnorm (T' - T)
          = (L * sqnorm (T' - T) - form C (T' - T)) / 2%:R by field; rewrite gt_eqF.
by rewrite divr_ge0 ?ler0n // subr_ge0.
Qed.

Hypothesis L_bound : eig_le C L.

(* (b) *)
Theorem sufficient_decrease T T' : S T -> pgd_step T T' ->
  f T' <= f T - (eta^-1 - L) / 2%:R * sqnorm (T' - T).
Proof. by move=> ST step; apply: decrease_on_move => // i; apply: L_bound. Qed.

Corollary monotone T T' : S T -> pgd_step T T' -> eta * L <= 1 -> f T' <= f T.
Proof.
move=> ST step le1; apply: le_trans (sufficient_decrease ST step) _.
rewrite ger_addl oppr_le0 mulr_ge0 ?sqnorm_ge0 // divr_ge0 ?ler0n // subr_ge0.
by rewrite -(@ler_pmul2l _ eta) // mulfV ?gt_eqF.
Qed.

(* (c) along a whole run, with any lower bound of f on S: 0 always is one *)
Variables (x : nat -> 'M[R]_(m, n)) (low : R).
Hypotheses (x0S : S (x 0%N)) (run : forall t, pgd_step (x t) (x t.+1)).
Hypotheses (short : eta * L < 1) (low_bound : forall T, S T -> low <= f T).

Let move t := sqnorm (x t.+1 - x t).
Let bound : R := 2%:R * (f (x 0%N) - low) / (eta^-1 - L).

Lemma iterates_feasible t : S (x t).
Proof. by case: t => [//|t]; case: (run t). Qed.

Lemma rate_gt0 : 0 < eta^-1 - L.
Proof. by rewrite subr_gt0 -(@ltr_pmul2l _ eta) // mulfV ?gt_eqF. Qed.

Theorem sum_of_moves T : \sum_(t < T) move t <= bound.
Proof.
suff le : (eta^-1 - L) / 2%:R * (\sum_(t < T) move t) <= f (x 0%N) - f (x T).
  rewrite /bound ler_pdivl_mulr ?rate_gt0 // mulrC -(@ler_pmul2l _ (2%:R^-1)) ?invr_gt0 ?ltr0n //.
  rewrite !mulrA [_^-1 * (eta^-1 - L)]mulrC mulVf ?pnatr_eq0 // mul1r; apply: le_trans le _.
  by rewrite ler_add2l ler_opp2 low_bound //; apply: iterates_feasible.
elim: T => [|T IH]; first by rewrite big_ord0 mulr0 subrr.
rewrite big_ord_recr /= mulrDr; apply: le_trans (ler_add IH (lexx _)) _.
rewrite -subr_ge0 opprD; set q := _ * move T.
have -> : f (x 0%N) - f (x T.+1) + (- (f (x 0%N) - f (x T)) - q) = f (x T) - q - f (x T.+1) by ring.
by rewrite subr_ge0; apply: sufficient_decrease (iterates_feasible T) (run T).
Qed.

(* (c), the smallest of T moves *)
Theorem smallest_move T : (0 < T)%N -> exists2 t, (t < T)%N & move t <= bound / T%:R.
Proof.
move=> T_gt0; have [/existsP[t le] | /existsPn none] := boolP [exists t : 'I_T, move t <= bound / T%:R].
  by exists t.
have := sum_of_moves T; rewrite leNgt => /negP[].
have -> : bound = \sum_(t < T) (bound / T%:R).
  by rewrite sumr_const card_ord -mulr_natr divfK ?pnatr_eq0 -?lt0n.
have long (t : 'I_T) : bound / T%:R < move t by rewrite ltNge none.
rewrite (bigD1 (Ordinal T_gt0)) // [X in _ < X](bigD1 (Ordinal T_gt0)) //.
by apply: ltr_le_add; [apply: long | apply: ler_sum => t _; apply: ltW].
Qed.

(* (c), the moves die out: at most bound / e of them are as long as e, however long the run *)
Theorem long_moves e T : e * #|[set t : 'I_T | e <= move t]|%:R <= bound.
Proof.
apply: le_trans (sum_of_moves T).
rewrite mulr_natr -sumr_const [X in _ <= X](bigID (mem [set t : 'I_T | e <= move t])) /=.
rewrite -[X in X <= _]addr0 ler_add ?sumr_ge0 // => [|t _]; last exact: sqnorm_ge0.
by apply: ler_sum => t; rewrite inE.
Qed.

End WithBound.
End Descent.

(* (d) Rows with at most k nonzeros: moves have at most 2k, and L may be the bound on such rows. *)
Section Sparse.
Variables (R : realFieldType) (m n k : nat).

Definition row_nnz (d : 'rV[R]_n) := #|[set j | d 0 j != 0]|.
Definition sparse_rows (T : 'M[R]_(m, n)) := forall i, (row_nnz (row i T) <= k)%N.
(* the largest eigenvalue of a principal submatrix of size s is at most beta *)
Definition restricted_eig_le (C : 'M[R]_n) s beta :=
  forall d : 'rV[R]_n, (row_nnz d <= s)%N -> form C d <= beta * sqnorm d.

Theorem sparse_decrease W C eta beta (T T' : 'M[R]_(m, n)) :
  symmetric C -> 0 < eta -> restricted_eig_le C (2 * k) beta -> sparse_rows T -> pgd_step W C sparse_rows eta T T' ->
  objective W C T' <= objective W C T - (eta^-1 - beta) / 2%:R * sqnorm (T' - T).
Proof.
move=> symC eta_gt0 le_beta ST step; apply: (decrease_on_move symC eta_gt0 ST step) => i; apply: le_beta.
have [ST' _] := step; rewrite mul2n -addnn (leq_trans _ (leq_add (ST' i) (ST i))) //.
rewrite -cardsUI (leq_trans _ (leq_addr _ _)) // subset_leq_card //.
apply/subsetP => j; rewrite !inE !mxE -negb_and; apply: contraNN => /andP[/eqP -> /eqP ->].
by rewrite subrr.
Qed.

End Sparse.
