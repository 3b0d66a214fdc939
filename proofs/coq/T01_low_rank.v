(* T01 (d). Eckart-Young: the truncated singular value decomposition is a nearest matrix of rank at most r. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* An orthogonal projector splits squared norms. *)
Section Projector.
Variables (R : realFieldType) (m : nat) (P : 'M[R]_m).
Hypotheses (symP : P^T = P) (idemP : P *m P = P).

Lemma projector_split n (A B : 'M[R]_(m, n)) : P *m B = B ->
  sqnorm (A - B) = sqnorm (A - P *m A) + sqnorm (P *m A - B).
Proof.
move=> PB; have -> : A - B = (A - P *m A) + (P *m A - B) by rewrite addrA subrK.
rewrite sqnormD [dot _ _](_ : _ = 0) ?mulr0 ?addr0 //.
have -> : P *m A - B = P *m (A - B) by rewrite mulmxBr PB.
rewrite /dot trmx_mul symP mulmxA mxtrace_mulC !mulmxA mulmxBr mulmxA idemP subrr.
by rewrite mul0mx mxtrace0.
Qed.

Lemma projector_pythagoras n (A : 'M[R]_(m, n)) : sqnorm A = sqnorm (A - P *m A) + sqnorm (P *m A).
Proof. by have := @projector_split _ A 0; rewrite mulmx0 !subr0 => ->. Qed.

Lemma projector_le n (A : 'M[R]_(m, n)) : sqnorm (P *m A) <= sqnorm A.
Proof. by rewrite [X in _ <= X]projector_pythagoras ler_addr sqnorm_ge0. Qed.

Lemma sqnorm_projector : sqnorm P = \tr P.
Proof. by rewrite /sqnorm /dot symP idemP. Qed.
End Projector.

(* The projector onto the columns of K, when these are independent *)
Section FullColumnRank.
Variables (R : realFieldType) (m k : nat) (K : 'M[R]_(m, k)).
Hypothesis full : row_full K.
Let N := K^T *m K.

Lemma normal_matrix_unit : N \in unitmx.
Proof.
rewrite -row_free_unit -kermx_eq0 -submx0; apply/row_subP => i; set x := row i _.
have xN : x *m N = 0 by apply/sub_kermxP; apply: row_sub.
have : x *m K^T = 0.
  by apply/eqP; rewrite -sqnorm_eq0 /sqnorm /dot trmx_mul trmxK mulmxA -(mulmxA x) xN mul0mx mxtrace0.
rewrite -[X in _ = X -> _](mul0mx _ K^T) => /row_free_inj -> //; first by rewrite sub0mx.
by rewrite /row_free mxrank_tr.
Qed.

Definition projector := K *m invmx N *m K^T.

Lemma projector_sym : projector^T = projector.
Proof. by rewrite /projector !trmx_mul trmxK mulmxA trmx_inv trmx_mul trmxK. Qed.

Lemma projectorK : projector *m K = K.
Proof. by rewrite /projector -mulmxA mulmxKV ?normal_matrix_unit. Qed.

Lemma projector_idem : projector *m projector = projector.
Proof. by rewrite [X in _ *m X = _]/projector !mulmxA projectorK. Qed.

Lemma projector_trace : \tr projector = k%:R.
Proof. by rewrite /projector mxtrace_mulC mulmxA mulmxV ?normal_matrix_unit ?mxtrace1. Qed.
End FullColumnRank.

(* Every matrix B has a projector onto its columns, with trace its rank. *)
Definition column_projector (R : realFieldType) m n (B : 'M[R]_(m, n)) := projector (col_base B).

Lemma column_projector_fix (R : realFieldType) m n (B : 'M[R]_(m, n)) : column_projector B *m B = B.
Proof.
transitivity (column_projector B *m (col_base B *m row_base B)); first by rewrite mulmx_base.
by rewrite mulmxA projectorK ?col_base_full ?mulmx_base.
Qed.

(* Weights p_i in [0, 1] with sum at most r gather at most the r first of a descending sequence. *)
Lemma descending_sum (R : realFieldType) p r (a q : 'I_p -> R) :
  (forall i, 0 <= a i) -> (forall i j : 'I_p, (i <= j)%N -> a j <= a i) -> (forall i, 0 <= q i <= 1) ->
  \sum_i q i <= r%:R ->
  \sum_i a i * q i <= \sum_(i < p | (i < r)%N) a i.
Proof.
move=> a0 desc q01 qr; have [pr | rp] := leqP p r.
  rewrite [X in _ <= X](eq_bigl xpredT) => [|i]; last by rewrite (leq_trans (ltn_ord i)).
  by apply: ler_sum => i _; have /andP[_ q1] := q01 i; rewrite ler_pimulr.
pose t := a (Ordinal rp); pose first (i : 'I_p) := (i < r)%N.
(* term by term: a_i q_i <= [i < r] a_i + t (q_i - [i < r]) *)
apply: (@le_trans _ _ (\sum_i ((if first i then a i else 0) + t * (q i - (if first i then 1 else 0))))).
  apply: ler_sum => i _; have /andP[q0 q1] := q01 i; rewrite /first; case: ltnP => [lt | ge].
    rewrite -subr_ge0; have -> : a i + t * (q i - 1) - a i * q i = (a i - t) * (1 - q i) by ring.
    by rewrite mulr_ge0 ?subr_ge0 // desc // ltnW.
  by rewrite add0r subr0 ler_wpmul2r // desc.
rewrite big_split /= -big_mkcond -mulr_sumr sumrB -big_mkcond /= -(big_ord_widen p (fun _ => 1) (ltnW rp)).
by rewrite sumr_const card_ord ger_addl mulr_ge0_le0 ?subr_le0 // a0.
Qed.

(* Equality, with a gap after the r first: all the weight is on these. *)
Lemma descending_sum_tight (R : realFieldType) p r (a q : 'I_p -> R) : (r < p)%N ->
  (forall i, 0 <= a i) -> (forall i j : 'I_p, (i <= j)%N -> a j <= a i) ->
  (forall i j : 'I_p, (i < r <= j)%N -> a j < a i) ->
  (forall i, 0 <= q i <= 1) -> \sum_i q i <= r%:R -> \sum_i a i * q i = \sum_(i < p | (i < r)%N) a i ->
  forall i, q i = if (i < r)%N then 1 else 0.
Proof.
move=> rp a0 desc gap q01 qr eq; pose t := a (Ordinal rp); pose first (i : 'I_p) : R := if (i < r)%N then 1 else 0.
have slack i : 0 <= a i * first i + t * (q i - first i) - a i * q i.
  have /andP[q0 q1] := q01 i; rewrite /first; case: ltnP => [lt | ge].
    have -> : a i * 1 + t * (q i - 1) - a i * q i = (a i - t) * (1 - q i) by ring.
    by rewrite mulr_ge0 ?subr_ge0 // desc // ltnW.
  by rewrite mulr0 add0r subr0 -mulrBl mulr_ge0 // subr_ge0 desc.
have firsts : \sum_i first i = r%:R.
  by rewrite /first -big_mkcond /= -(big_ord_widen p (fun _ => 1) (ltnW rp)) sumr_const card_ord.
have total : \sum_i (a i * first i + t * (q i - first i) - a i * q i) = t * (\sum_i q i - r%:R).
  rewrite sumrB big_split /= -mulr_sumr sumrB firsts eq addrAC.
  have -> : \sum_i a i * first i = \sum_(i < p | (i < r)%N) a i.
    by rewrite [RHS]big_mkcond; apply: eq_bigr => i _; rewrite /first; case: ifP; rewrite ?mulr1 ?mulr0.
  by rewrite subrr add0r.
have zero i : a i * first i + t * (q i - first i) - a i * q i = 0.
  apply/eqP; rewrite eq_le slack andbT; apply: (@le_trans _ _ (t * (\sum_i q i - r%:R))).
    by rewrite -total (bigD1 i) //= ler_addl sumr_ge0.
  by rewrite mulr_ge0_le0 ?a0 // subr_le0.
have ones (i : 'I_p) : (i < r)%N -> q i = 1.
  move=> lt; have := zero i; rewrite /first lt.
  have -> : a i * 1 + t * (q i - 1) - a i * q i = (a i - t) * (1 - q i) by ring.
  move/eqP; rewrite mulf_eq0 !subr_eq0 => /orP[/eqP ai | /eqP //].
  by have := gap i (Ordinal rp); rewrite lt leqnn -/t ai ltxx => /(_ isT).
have rest : \sum_(i < p | ~~ (i < r)%N) q i <= 0.
  have split := qr; rewrite (bigID (fun i : 'I_p => i < r)%N) /= in split.
  rewrite -(ler_add2l (\sum_(i < p | (i < r)%N) q i)) addr0; apply: le_trans split _.
  by rewrite -firsts /first -big_mkcond le_eqVlt; apply/orP; left; apply/eqP/eq_bigr => i lt; rewrite ones.
move=> i; case: ifP => [/ones // | /negbT out]; apply/eqP; rewrite eq_le; have /andP[-> _] := q01 i; rewrite andbT.
apply: le_trans rest; rewrite (bigD1 i) //= ler_addl sumr_ge0 // => j _; by case/andP: (q01 j).
Qed.

(* Multiplying by orthonormal columns keeps the norm. *)
Lemma sqnorm_isometry (R : realFieldType) k n p (V : 'M[R]_(n, p)) (A : 'M[R]_(k, p)) :
  V^T *m V = 1%:M -> sqnorm (A *m V^T) = sqnorm A.
Proof. by move=> orth; rewrite /sqnorm /dot trmx_mul trmxK mulmxA -(mulmxA A) orth mulmx1. Qed.

Section EckartYoung.
Variables (R : realFieldType) (m n p r : nat) (U : 'M[R]_(m, p)) (V : 'M[R]_(n, p)) (sigma : 'I_p -> R).
Hypotheses (orthU : U^T *m U = 1%:M) (orthV : V^T *m V = 1%:M).
Hypotheses (sigma_ge0 : forall i, 0 <= sigma i) (descending : forall i j : 'I_p, (i <= j)%N -> sigma j <= sigma i).

Definition diagonal (d : 'I_p -> R) : 'M[R]_p := diag_mx (\row_i d i).
Definition cut (d : 'I_p -> R) (i : 'I_p) := if (i < r)%N then d i else 0.
(* Z = sum sigma_i u_i v_i^T, and the same cut after r terms *)
Definition Z := U *m diagonal sigma *m V^T.
Definition truncated := U *m diagonal (cut sigma) *m V^T.

Lemma sqnorm_diagonal k (A : 'M[R]_(k, p)) d : sqnorm (A *m diagonal d) = \sum_i d i ^+ 2 * sqnorm (col i A).
Proof.
rewrite -sqnorm_tr sqnorm_rows; apply: eq_bigr => i _; rewrite -sqnormZ -sqnorm_tr; congr (sqnorm _).
by apply/colP => j; rewrite /diagonal mul_mx_diag !mxE mulrC.
Qed.

Lemma sqnorm_col_U i : sqnorm (col i U) = 1.
Proof.
have /matrixP/(_ i i) := orthU; rewrite mxE [1%:M _ _]mxE eqxx mulr1n => <-.
by rewrite sqnormE; apply: eq_bigr => k _; rewrite big_ord1 !mxE.
Qed.

(* A middle factor that vanishes from r on cuts the rank to r. *)
Lemma cut_rank k (d : 'I_p -> R) (A : 'M[R]_(p, k)) :
  (\rank (U *m diagonal (cut d) *m A)%R <= r)%N.
Proof.
apply: leq_trans (mxrankM_maxl _ _) _.
have [pr | rp] := leqP p r; first by apply: leq_trans (rank_leq_col _) pr.
apply: leq_trans (mxrankM_maxr _ _) _.
have -> : diagonal (cut d) = diagonal d *m pid_mx r.
  by apply/matrixP => i j; rewrite mul_diag_mx !mxE -val_eqE /cut /=; case: (_ == _); case: (_ < _)%N;
    rewrite ?mulr1 ?mulr0.
by apply: leq_trans (mxrankM_maxr _ _) _; rewrite rank_pid_mx // ltnW.
Qed.

Theorem truncated_distance : sqnorm (Z - truncated) = \sum_(i < p | (r <= i)%N) sigma i ^+ 2.
Proof.
rewrite /Z /truncated -mulmxBl -mulmxBr (sqnorm_isometry _ orthV).
have -> : diagonal sigma - diagonal (cut sigma) = diagonal (fun i => if (r <= i)%N then sigma i else 0).
  by apply/matrixP => i j; rewrite !mxE -mulrnBl; congr (_ *+ _); rewrite /cut; case: ltnP; rewrite ?subrr ?subr0.
rewrite sqnorm_diagonal [RHS]big_mkcond; apply: eq_bigr => i _; rewrite sqnorm_col_U mulr1.
by case: ifP; rewrite ?expr0n.
Qed.

(* Any B of rank at most r, through the projector P onto its columns: it catches q_i = ||P u_i||^2 of u_i. *)
Section Competitor.
Variable B : 'M[R]_(m, n).
Hypothesis rankB : (\rank B <= r)%N.
Let P := column_projector B.
Let symP : P^T = P := projector_sym _.
Let idemP : P *m P = P := projector_idem (col_base_full B).
Let q i := sqnorm (P *m col i U).
Let head := \sum_(i < p | (i < r)%N) sigma i ^+ 2.
Let tail := \sum_(i < p | (r <= i)%N) sigma i ^+ 2.

Lemma q_bounds i : 0 <= q i <= 1.
Proof. by rewrite sqnorm_ge0 -(sqnorm_col_U i); apply: projector_le. Qed.

Lemma q_sum : \sum_i q i <= r%:R.
Proof.
have -> : \sum_i q i = sqnorm (U^T *m P).
  by rewrite sqnorm_rows; apply: eq_bigr => i _; rewrite /q -sqnorm_tr trmx_mul symP tr_col row_mul.
apply: (@le_trans _ _ (sqnorm P)); last first.
  by rewrite (sqnorm_projector symP idemP) (projector_trace (col_base_full B)) ler_nat.
(* U U^T is a projector too *)
rewrite -sqnorm_tr -(sqnorm_isometry _ orthU) -sqnorm_tr trmx_mul !trmxK mulmxA; apply: projector_le.
  by rewrite trmx_mul trmxK.
by rewrite mulmxA -(mulmxA U) orthU mulmx1.
Qed.

Lemma competitor_distance :
  sqnorm (Z - B) = head - \sum_i sigma i ^+ 2 * q i + tail + sqnorm (P *m Z - B).
Proof.
have whole : sqnorm (Z - B) = sqnorm (Z - P *m Z) + sqnorm (P *m Z - B).
  exact: projector_split (column_projector_fix B).
have parts : sqnorm Z = sqnorm (Z - P *m Z) + sqnorm (P *m Z) by exact: projector_pythagoras.
have PZ : sqnorm (P *m Z) = \sum_i sigma i ^+ 2 * q i.
  by rewrite /Z !mulmxA (sqnorm_isometry _ orthV) sqnorm_diagonal; apply: eq_bigr => i _; rewrite /q !colE mulmxA.
have normZ : sqnorm Z = head + tail.
  rewrite (sqnorm_isometry _ orthV) sqnorm_diagonal (bigID (fun i : 'I_p => i < r)%N) /=.
  congr (_ + _); first by apply: eq_bigr => i _; rewrite sqnorm_col_U mulr1.
  by apply: eq_big => [i | i _]; rewrite ?sqnorm_col_U ?mulr1 // -leqNgt.
have left_over : sqnorm (Z - P *m Z) = sqnorm Z - sqnorm (P *m Z) by rewrite parts addrK.
by rewrite whole left_over normZ PZ (addrAC head).
Qed.

Lemma gathered : \sum_i sigma i ^+ 2 * q i <= head.
Proof.
apply: descending_sum => [i|i j ij|i|]; [exact: sqr_ge0 | | exact: q_bounds | exact: q_sum].
by rewrite ler_expn2r ?nnegrE // descending.
Qed.

Lemma truncated_le : sqnorm (Z - truncated) <= sqnorm (Z - B).
Proof.
rewrite truncated_distance competitor_distance -addrA; apply: (@le_trans _ _ (tail + sqnorm (P *m Z - B))).
  by rewrite ler_addl sqnorm_ge0.
by rewrite ler_addr subr_ge0 gathered.
Qed.

(* As near as the truncated decomposition, and a gap after sigma_r: then B is that. *)
Hypothesis gap : forall i j : 'I_p, (i < r <= j)%N -> sigma j < sigma i.
Hypothesis as_near : sqnorm (Z - B) <= sqnorm (Z - truncated).

Lemma tight : \sum_i sigma i ^+ 2 * q i = head /\ B = P *m Z.
Proof.
move: as_near; rewrite truncated_distance competitor_distance -addrA addrCA ger_addl => le0.
have g0 : 0 <= head - \sum_i sigma i ^+ 2 * q i by rewrite subr_ge0 gathered.
move: le0; rewrite le_eqVlt ltNge addr_ge0 ?sqnorm_ge0 // orbF paddr_eq0 ?sqnorm_ge0 // => /andP[].
by rewrite subr_eq0 sqnorm_eq0 subr_eq0 => /eqP -> /eqP ->.
Qed.

Lemma catches_all : P *m U = U *m diagonal (cut (fun _ => 1)) \/ (p <= r)%N.
Proof.
have [pr | rp] := leqP p r; [by right | left].
have qE : forall i, q i = if (i < r)%N then 1 else 0.
  apply: (descending_sum_tight rp _ _ _ q_bounds q_sum tight.1) => [i|i j ij|i j ij]; first exact: sqr_ge0.
    by rewrite ler_expn2r ?nnegrE // descending.
  by rewrite ltr_expn2r // gap.
apply/matrixP => k i; rewrite /diagonal mul_mx_diag [RHS]mxE [X in _ * X]mxE.
have column : col i (P *m U) = P *m col i U by rewrite !colE mulmxA.
have entry : (P *m U) k i = (P *m col i U) k 0 by rewrite -column [RHS]mxE.
rewrite entry; have := qE i; rewrite /cut; case: ifP => _ qi.
  have split := projector_pythagoras symP idemP (col i U); move: split; rewrite -/(q i) qi sqnorm_col_U.
  move=> /eqP; rewrite -subr_eq subrr eq_sym sqnorm_eq0 subr_eq0 => /eqP <-.
  by rewrite mxE mulr1.
by move/eqP: qi; rewrite sqnorm_eq0 => /eqP ->; rewrite mxE mulr0.
Qed.

Lemma only_truncated : B = truncated.
Proof.
have [caught | pr] := catches_all.
  rewrite tight.2 /Z !mulmxA caught /truncated -(mulmxA U); congr (_ *m _ *m _).
  apply/matrixP => i j; rewrite mul_diag_mx !mxE; case: eqP => [->|]; rewrite ?mulr0 //.
  by rewrite /cut; case: ifP; rewrite ?mul1r ?mul0r.
have tail0 : sqnorm (Z - truncated) = 0.
  rewrite truncated_distance big1 // => i; rewrite leqNgt (leq_trans (ltn_ord i) pr) //.
move: as_near; rewrite tail0 le_eqVlt ltNge sqnorm_ge0 orbF sqnorm_eq0 subr_eq0 => /eqP <-.
by move/eqP: tail0; rewrite sqnorm_eq0 subr_eq0 => /eqP.
Qed.
End Competitor.

Theorem eckart_young : nearest (fun B : 'M_(m, n) => \rank B <= r)%N Z truncated.
Proof. by split=> [|B rankB]; [exact: cut_rank | exact: truncated_le]. Qed.

(* It is the only nearest point if sigma_r > sigma_(r+1). *)
Theorem eckart_young_unique B : (forall i j : 'I_p, (i < r <= j)%N -> sigma j < sigma i) ->
  nearest (fun B : 'M_(m, n) => \rank B <= r)%N Z B -> B = truncated.
Proof. by move=> gap [rankB near]; apply: only_truncated rankB gap _; apply: near; apply: cut_rank. Qed.

End EckartYoung.
