(* T03 (a), (c). The paper's step 2/||C||_F in the pruning cycle, and when such a step is covered by T02. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From awp Require Import matrix_forms T02 T03a_pruning_cycle.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* A rational step within the paper's own bound: 7/5 <= 2/||C||_F, written without the root. *)
Theorem rational_step (R : realFieldType) :
  (1 < 7%:R / 5%:R :> R) /\ (7%:R / 5%:R < 3%:R :> R) /\
  (7%:R / 5%:R) ^+ 2 * sqnorm (1%:M : 'M[R]_2) <= 2%:R ^+ 2.
Proof.
rewrite sqnormE !big_ord_recl !big_ord0 !mxE /= expr1n expr0n !addr0 add0r.
split; first by rewrite ltr_pdivl_mulr ?ltr0n // mul1r ltr_nat.
split; first by rewrite ltr_pdivr_mulr ?ltr0n // -natrM ltr_nat.
have -> : (7%:R / 5%:R) ^+ 2 * (1 + 1) = 98%:R / 25%:R :> R by field.
by rewrite ler_pdivr_mulr ?ltr0n // -natrX -natrM ler_nat.
Qed.

(* The paper's own step, where the field has square roots. *)
Section PaperStep.
Variable R : rcfType.

Definition frobenius m n (A : 'M[R]_(m, n)) := Num.sqrt (sqnorm A).
Definition paper_step n (C : 'M[R]_n) := 2%:R / frobenius C.

Theorem paper_step_here : paper_step (1%:M : 'M[R]_2) = Num.sqrt 2%:R.
Proof.
rewrite /paper_step /frobenius sqnormE !big_ord_recl !big_ord0 !mxE /= expr1n expr0n !addr0 add0r -[1 + 1]/(2%:R).
apply: (canLR (mulfK _)); first by rewrite sqrtr_eq0 -ltNge ltr0n.
by rewrite -expr2 sqr_sqrtr ?ler0n.
Qed.

Theorem paper_step_cycles : (1 < Num.sqrt 2%:R :> R) /\ (Num.sqrt 2%:R < 3%:R :> R).
Proof.
have sq : Num.sqrt 2%:R ^+ 2 = 2%:R :> R by rewrite sqr_sqrtr ?ler0n.
split; rewrite -(@ltr_pexpn2r _ 2) ?nnegrE ?sqrtr_ge0 ?ler0n ?ler01 // sq ?expr1n ?ltr1n //.
by rewrite -natrX ltr_nat.
Qed.

Theorem paper_cycle_value :
  objective (row2 1 1) 1%:M (row2 (Num.sqrt 2%:R) 0) = 2%:R - Num.sqrt 2%:R :> R.
Proof.
have sq : Num.sqrt 2%:R ^+ 2 = 2%:R :> R by rewrite sqr_sqrtr ?ler0n.
move: (Num.sqrt _) sq => s sq; rewrite value.
have -> : (1 - s) ^+ 2 + (1 - 0) ^+ 2 = s ^+ 2 + 2%:R - 2%:R * s by ring.
by rewrite sq; field.
Qed.

(* (c) When a step c/||C||_F is covered. L is the largest eigenvalue of C: a bound that is reached. *)
Section Coverage.
Variables (n : nat) (C : 'M[R]_n) (L c : R).
Hypotheses (psdC : psd C) (L_bound : eig_le C L) (L_gt0 : 0 < L) (c_gt0 : 0 < c).
Hypothesis L_reached : exists2 d : 'rV[R]_n, d != 0 & form C d = L * sqnorm d.

Definition stable_rank := sqnorm C / L ^+ 2.

Theorem stable_rank_bounds : 1 <= stable_rank <= n%:R.
Proof.
rewrite ler_pdivl_mulr ?ler_pdivr_mulr ?exprn_gt0 // mul1r; apply/andP; split.
  have [d d_neq0 eq] := L_reached.
  have s_gt0 : 0 < sqnorm d by rewrite lt_neqAle eq_sym sqnorm_eq0 d_neq0 sqnorm_ge0.
  rewrite -(ler_pmul2r (exprn_gt0 2 s_gt0)) -exprMn -eq form_dot.
  apply: le_trans (cauchy_schwarz _ _) _; rewrite expr2 mulrA ler_pmul2r //.
  by rewrite mulrC; apply: le_trans (sqnorm_mulmx _ _) _; rewrite mulrC.
rewrite sqnorm_rows; apply: (@le_trans _ _ (\sum_(i < n) L ^+ 2)); last by rewrite sumr_const card_ord mulr_natl.
apply: ler_sum => i _; rewrite rowE; apply: le_trans (sqnorm_gram _ psdC L_bound (ltW L_gt0)) _.
rewrite expr2 ler_pmul2l //; apply: le_trans (L_bound _) _; rewrite ger_pmulr //.
by rewrite sqnormE big_ord1 (bigD1 i) //= big1 => [|j /negbTE]; rewrite !mxE ?eqxx /= ?expr1n ?addr0 // eq_sym => ->;
  rewrite expr0n.
Qed.

Lemma frobenius_stable_rank : frobenius C = L * Num.sqrt stable_rank.
Proof.
rewrite -[X in X * _](_ : Num.sqrt (L ^+ 2) = L); last by rewrite sqrtr_sqr gtr0_norm.
by rewrite /frobenius /stable_rank -sqrtrM ?sqr_ge0 // mulrC divfK // gt_eqF ?exprn_gt0.
Qed.

Lemma sqrt_stable_rank_ge1 : 1 <= Num.sqrt stable_rank.
Proof. by rewrite -{1}sqrtr1 ler_wsqrtr //; case/andP: stable_rank_bounds. Qed.

Theorem relative_step : c / frobenius C * L = c / Num.sqrt stable_rank.
Proof.
rewrite frobenius_stable_rank; have := lt_le_trans ltr01 sqrt_stable_rank_ge1.
by move=> s_gt0; field; rewrite !gt_eqF.
Qed.

Theorem covered_iff : (c / frobenius C * L < 1) = (c ^+ 2 < stable_rank).
Proof.
have s_gt0 := lt_le_trans ltr01 sqrt_stable_rank_ge1.
have sq : Num.sqrt stable_rank ^+ 2 = stable_rank.
  by rewrite sqr_sqrtr // (le_trans ler01) //; case/andP: stable_rank_bounds.
by rewrite relative_step ltr_pdivr_mulr // mul1r -{2}sq ltr_pexpn2r ?nnegrE ?ltW.
Qed.

Corollary relative_step_le : c / frobenius C * L <= c.
Proof.
rewrite relative_step ler_pdivr_mulr ?(lt_le_trans ltr01 sqrt_stable_rank_ge1) //.
by rewrite ler_pmulr // sqrt_stable_rank_ge1.
Qed.

End Coverage.

Corollary small_layers_uncovered n (C : 'M[R]_n) L : psd C -> eig_le C L -> 0 < L ->
  (exists2 d : 'rV[R]_n, d != 0 & form C d = L * sqnorm d) -> (n <= 4)%N -> 1 <= paper_step C * L.
Proof.
move=> psdC L_bound L_gt0 reached n4; rewrite leNgt /paper_step (covered_iff psdC L_bound L_gt0 _ reached) ?ltr0n //
  -leNgt -natrX.
by case/andP: (stable_rank_bounds psdC L_bound L_gt0 reached) => _ /le_trans; apply; rewrite ler_nat.
Qed.

End PaperStep.
